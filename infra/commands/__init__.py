"""infra/commands"""
