"""pipeline/session"""
