"""Scripts that make training data here and train on a GPU host; standalone, with light imports."""
