"""Which layers of transformers are replaced, and by what?"""
