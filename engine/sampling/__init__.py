"""How is the next token chosen?"""
