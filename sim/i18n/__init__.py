"""What do people read, in their language?"""
