class Inputs:
    pass
