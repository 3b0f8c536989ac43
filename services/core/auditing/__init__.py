"""The storage auditor: the object store compared with the records."""
