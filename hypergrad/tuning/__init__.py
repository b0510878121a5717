"""The front door: tune a task, judge the result, resume and replay."""
