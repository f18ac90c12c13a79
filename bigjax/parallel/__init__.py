"""The mesh, the table of logical axis rules, and shardings of everything a run holds."""
