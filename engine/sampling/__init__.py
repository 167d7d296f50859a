"""How is the next token picked?"""
