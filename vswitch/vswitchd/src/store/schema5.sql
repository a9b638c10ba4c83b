-- Version 5: uplinks that change.
-- The settings of the host's network stack that the uplink had before it was bound, and gets back (JSON).
ALTER TABLE network ADD COLUMN uplink_settings TEXT;
UPDATE network SET uplink_settings =
    (SELECT json_extract(moved, '$.settings') FROM host_change WHERE host_change.host_nic = network.host_nic)
    WHERE uplink IS NOT NULL;

-- Uplinks that are to be released: written before one is bound, deleted when it belongs to its network, and written
-- again when it does no more, until it is released. One that is there at the start is what a killed vswitchd left.
CREATE TABLE loose_uplink (
    uplink   TEXT PRIMARY KEY,
    mtu      INTEGER,
    settings TEXT,
    -- The addresses and routes that it gets back (JSON).
    moved    TEXT
) STRICT;
