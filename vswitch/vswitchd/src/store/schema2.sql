-- Version 2: VMs.
CREATE TABLE vm (
    name   TEXT PRIMARY KEY,
    -- Its settings, as the type VmConfig is written (JSON).
    config TEXT NOT NULL,
    -- Identifies it to its guest; 16 bytes.
    uuid   BLOB NOT NULL,
    state  TEXT NOT NULL CHECK (state IN ('off', 'running', 'saved')),
    -- The process of a running VM, and the time it was started at (proc(5), stat, field 22), so that another process
    -- of the same number is not taken for it.
    pid     INTEGER,
    started INTEGER,
    -- Whether it ran when vswitchd ended.
    resume INTEGER NOT NULL CHECK (resume IN (0, 1)),
    CHECK ((state = 'running') = (pid IS NOT NULL)),
    CHECK ((pid IS NULL) = (started IS NULL))
) STRICT;

CREATE TABLE adapter (
    vm         TEXT NOT NULL REFERENCES vm (name) ON DELETE CASCADE,
    name       TEXT NOT NULL,
    mac        TEXT NOT NULL,
    static_mac INTEGER NOT NULL CHECK (static_mac IN (0, 1)),
    -- The VLAN it gets when it is first connected; from then on that of its port holds.
    vlan       INTEGER CHECK (vlan BETWEEN 1 AND 4094),
    PRIMARY KEY (vm, name)
) STRICT;

-- Every address of a pool that was ever given to an adapter: none is given twice.
CREATE TABLE mac_given (
    mac INTEGER PRIMARY KEY CHECK (mac BETWEEN 1 AND 281474976710655)
) STRICT;

-- What was chosen by chance once and holds from then on, as the pool of addresses of a host that was told none.
CREATE TABLE chosen (
    name  TEXT PRIMARY KEY,
    value TEXT NOT NULL
) STRICT;
