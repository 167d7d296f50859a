"""How fast would it be on hardware that is not here?"""
