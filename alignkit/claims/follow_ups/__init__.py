"""Follow-ups of headlines: of one that did not hold, when would it; of one that held for
another reason than the paper's, as its notebook found, when does it no more?

A file here has the name of a paper's claims file and is like one (`NEEDS`, `data`, `claims`),
with a single claim, which says in `when` what presumed cause it supplies or takes away. It was
thought of after the headline's result, so it has a registration of its own, which names that
result, and seeds that the headline has not seen: from `FIRST` on. It stands beside the paper's
six claims, is asked for as SLUG.follow-up, and changes none of their files.
"""

FIRST = 200  # of the paired seeds of every follow-up
