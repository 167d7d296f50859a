"""What happens in one run of the company, and which tables are read off it?"""
