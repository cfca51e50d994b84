"""What an operator can see: the names of everything observable (`signals`) and the log lines (`logs`).

Read `signals` first. May import nothing of Piecework but `errors`, `config` and `clock`.
"""
