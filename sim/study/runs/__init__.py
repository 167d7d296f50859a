"""How are many runs made: here, in workers or on a cluster, and resumed after a kill?"""
