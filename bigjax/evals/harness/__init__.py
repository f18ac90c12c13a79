"""Tasks in the form of lm-evaluation-harness (version 0.4), of local files: `bigjax evaluate`.

task_file: the form and its checks. documents: rows, and the texts that follow from them. scores:
filters, metrics and their standard errors. run: the requests to a model, and the results.
"""
