"""models/embed"""
