"""infra/kafka"""
