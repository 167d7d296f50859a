"""Where do weights and sizes come from?"""
