"""Where do weights, tokenizers and sizes come from?"""
