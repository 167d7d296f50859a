"""How is a profile measured, here or through an endpoint?"""
