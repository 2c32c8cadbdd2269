"""pipeline/store"""
