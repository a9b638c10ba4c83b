-- Version 4: how long a network's MAC table remembers a silent station, in seconds (0: for ever), and how many a port may
-- have in it (NULL: what is usual for its kind).
ALTER TABLE network ADD COLUMN ageing INTEGER NOT NULL DEFAULT 300 CHECK (ageing BETWEEN 0 AND 1000000);
ALTER TABLE port ADD COLUMN mac_quota INTEGER CHECK (mac_quota BETWEEN 1 AND 1048576);
