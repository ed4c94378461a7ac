"""From data sets to records, and from records to better ones.

prepare    one file of records from the files of data sets, without duplicates and benchmarks' problems
label      every response is run against its problem's tests
mutate     wrong but plausible responses are made from correct ones, and run to be sure
writing    how all write: in order, so that what was interrupted goes on
"""
