"""What is imported when: names of a package on first use, and objects of libraries that may never be needed.

Torch takes more than a second to import, PyTorch Geometric two more. A command that needs neither must not wait.
"""
