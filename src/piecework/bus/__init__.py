"""Events and who watches them in this process: `event` first, then `subscriptions`.

An event that starts or wakes work goes through the store; subscribers here only watch, at most once, and their
errors never reach the emitter. May import `store`, `telemetry` and below.
"""
