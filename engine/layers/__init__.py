"""What replaces a layer of transformers?"""
