"""tests/infra"""
