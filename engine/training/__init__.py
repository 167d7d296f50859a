"""How is a model trained, and which law does its loss follow?"""
