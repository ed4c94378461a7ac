"""From records to better records: verdicts by running their tests, wrong variants of what is right.

label      every response is run against its problem's tests
mutate     wrong but plausible responses are made from correct ones, and run to be sure
writing    how both write: in order, so that what was interrupted goes on
"""
