"""The formats of files with frames: one module a format, which reads it and perhaps writes it.

`tem_live.files` is what the rest of the program uses. Each module imports its library when a file
of its format is opened, and not before. What a library raises is left to `opening`.
"""
