"""pipeline/newswire"""
