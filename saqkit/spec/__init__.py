"""The description that both engines read: pure data and pure functions, without redis, saq, simpy or sqlalchemy."""
