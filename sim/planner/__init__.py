"""How many accelerators does a model need?"""
