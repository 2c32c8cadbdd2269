"""tests/pipeline"""
