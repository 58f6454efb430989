"""What must survive a crash: a SQLite database of rows, and blobs by digest beside it.

The order that keeps them together: a blob is on disk, fsynced, before the row that names it is
written, and a row that names a missing blob is refused. What is interrupted between the two
leaves a blob that nothing names, which `State.sweep_blobs` removes.
"""
