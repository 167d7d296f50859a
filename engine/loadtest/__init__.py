"""How fast does a server answer, seen from its clients?"""
