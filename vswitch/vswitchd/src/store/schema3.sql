-- Version 3: the address of a network's host NIC, chosen when the network is made. NULL in networks of an earlier
-- version until they are restored.
ALTER TABLE network ADD COLUMN host_mac TEXT CHECK (host_mac IS NULL OR host_nic IS NOT NULL);
