"""What does a server feel like from outside?"""
