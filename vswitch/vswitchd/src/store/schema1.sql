-- The store of vswitchd, version 1 (PRAGMA user_version): networks.
CREATE TABLE network (
    name     TEXT PRIMARY KEY,
    type     TEXT NOT NULL CHECK (type IN ('external', 'internal', 'private')),
    uplink   TEXT UNIQUE,
    host_nic TEXT UNIQUE,
    mtu      INTEGER NOT NULL CHECK (mtu BETWEEN 68 AND 9000),
    -- The MTU that the uplink had before it was bound, and gets back.
    uplink_mtu INTEGER,
    CHECK ((type = 'external') = (uplink IS NOT NULL)),
    CHECK (type <> 'private' OR host_nic IS NULL)
) STRICT;

CREATE TABLE port (
    network   TEXT NOT NULL REFERENCES network (name) ON DELETE CASCADE,
    name      TEXT NOT NULL,
    -- What is behind it, as the API writes it (JSON), and the interface or socket in it, which is used once only.
    backend   TEXT NOT NULL,
    target    TEXT NOT NULL UNIQUE,
    vlan      TEXT NOT NULL,
    mac_guard TEXT NOT NULL,
    mtu       INTEGER CHECK (mtu BETWEEN 68 AND 9000),
    link      TEXT NOT NULL CHECK (link IN ('up', 'down')),
    connected INTEGER NOT NULL CHECK (connected IN (0, 1)),
    PRIMARY KEY (network, name)
) STRICT;

CREATE TABLE static_entry (
    network TEXT NOT NULL,
    mac     TEXT NOT NULL,
    -- 0: no VLAN.
    vlan    INTEGER NOT NULL CHECK (vlan BETWEEN 0 AND 4094),
    port    TEXT NOT NULL,
    PRIMARY KEY (network, mac, vlan),
    FOREIGN KEY (network, port) REFERENCES port (network, name) ON DELETE CASCADE
) STRICT;

-- What vswitchd has changed, or is about to change, on the host. A row is written before the change and deleted after
-- it is undone, so that one without its network is what a killed vswitchd left behind.
CREATE TABLE host_change (
    host_nic TEXT PRIMARY KEY,
    uplink   TEXT,
    -- The addresses and routes moved from the uplink to the host NIC (JSON).
    moved    TEXT
) STRICT;
