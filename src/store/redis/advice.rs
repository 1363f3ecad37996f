//! What a Redis server says of itself, and what to mend so that it keeps money: from its `INFO`, since `CONFIG` is often forbidden.

/// Patched releases per line of versions: the Lua engine before them can be broken out of (CVE-2025-49844, -46817, -46818).
const REDIS_FIXED: [[u32; 3]; 5] = [[6, 2, 20], [7, 2, 11], [7, 4, 6], [8, 0, 4], [8, 2, 2]];
const VALKEY_FIXED: [[u32; 3]; 3] = [[7, 2, 11], [8, 0, 6], [8, 1, 4]];

/// One line per thing that is amiss, none of them a reason not to start.
pub(super) fn advice(info: &str, wait_replicas: u32) -> Vec<String> {
    let of = |name: &str| {
        info.lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
            .map(|value| value.trim_end().to_owned())
    };
    let is = |name: &str, value: &str| of(name).as_deref() == Some(value);
    let mut advice = Vec::new();
    if let Some(policy) = of("maxmemory_policy").filter(|policy| policy != "noeviction") {
        advice.push(format!(
            "Redis may evict budgets (maxmemory-policy {policy}): set `maxmemory-policy noeviction`, or give the ledger a server of its own"
        ));
    }
    if is("aof_enabled", "0") {
        advice.push(
            "Redis writes no append-only file, so a crash forgets what closed purses have spent: set `appendonly yes`"
                .to_owned(),
        );
    }
    if is("role", "slave") {
        advice.push("this Redis is a replica and cannot grant anything: name its primary, or the Sentinels".to_owned());
    }
    let replicas: u32 = of("connected_slaves").and_then(|count| count.parse().ok()).unwrap_or_default();
    if replicas < wait_replicas {
        advice.push(format!(
            "ledger.wait_replicas is {wait_replicas}, but Redis has {replicas} replicas connected: nothing is granted until there are enough"
        ));
    }
    if replicas > 0 && wait_replicas == 0 {
        advice.push(
            "Redis has replicas, but ledger.wait_replicas is 0: a failover may forget grants, which are then granted twice".to_owned(),
        );
    }
    let (name, version, fixed) = match (of("valkey_version"), of("redis_version")) {
        (Some(valkey), _) => ("Valkey", valkey, &VALKEY_FIXED[..]),
        (None, Some(redis)) => ("Redis", redis, &REDIS_FIXED[..]),
        (None, None) => return advice,
    };
    if is_exposed(&version, fixed) {
        advice.push(format!(
            "{name} {version} may have a Lua engine that can be broken out of (CVE-2025-49844): update it, unless your distribution has mended it"
        ));
    }
    advice
}

/// Whether a version is older than the patched release of its line, or of a line that got none.
fn is_exposed(version: &str, fixed: &[[u32; 3]]) -> bool {
    let mut parts = version.split('.').map(|part| part.parse::<u32>().unwrap_or_default());
    let version = [(); 3].map(|()| parts.next().unwrap_or_default());
    match fixed.iter().find(|fixed| fixed[..2] == version[..2]) {
        Some(fixed) => version < *fixed,
        None => fixed.last().is_some_and(|newest| version < *newest),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "# Server\r\nredis_version:8.2.2\r\nmaxmemory_policy:noeviction\r\naof_enabled:1\r\nrole:master\r\nconnected_slaves:0\r\n";

    #[test]
    fn a_server_that_keeps_money_gets_no_advice() {
        assert_eq!(advice(GOOD, 0), [""; 0]);
    }

    #[test]
    fn each_thing_amiss_gets_one_line_with_its_mend() {
        let table = [
            ("maxmemory_policy:noeviction", "maxmemory_policy:allkeys-lru", 0, "maxmemory-policy noeviction"),
            ("aof_enabled:1", "aof_enabled:0", 0, "appendonly yes"),
            ("role:master", "role:slave", 0, "name its primary"),
            ("connected_slaves:0", "connected_slaves:0", 1, "has 0 replicas"),
            ("connected_slaves:0", "connected_slaves:2", 0, "wait_replicas is 0"),
            ("redis_version:8.2.2", "redis_version:7.0.15", 0, "CVE-2025-49844"),
            ("redis_version:8.2.2", "redis_version:7.2.4\r\nvalkey_version:8.1.3", 0, "Valkey 8.1.3"),
        ];
        for (good, bad, wait_replicas, mend) in table {
            let advice = advice(&GOOD.replace(good, bad), wait_replicas);
            assert!(advice.len() == 1 && advice[0].contains(mend), "{bad}: {advice:?}");
        }
    }

    #[test]
    fn versions_are_compared_within_their_line() {
        for (version, exposed) in
            [("7.2.10", true), ("7.2.11", false), ("7.4.6", false), ("7.0.15", true), ("8.4.0", false), ("9", false)]
        {
            assert_eq!(is_exposed(version, &REDIS_FIXED), exposed, "{version}");
        }
    }
}
