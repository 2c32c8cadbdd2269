"""tests/rl"""
