"""The pytest plug-in of lmc-verify: options, the fixtures ``lmc_ledger`` and ``lmc_audit``, and a summary.

pytest imports plug-ins in every session. This package therefore stands beside `lmc_verify`, and imports it where a test
asks for a fixture.
"""
