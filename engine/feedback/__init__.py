"""What does one turn of the flywheel do, for real: serve, collect, train, serve again?"""
