//! Who may use the API: root, the user that vswitchd runs as, and members of the socket's group.
//!
//! The socket's mode keeps others from connecting. This is the second lock: it holds where an administrator has
//! widened the mode, or passed a connection on.

use axum::extract::connect_info::Connected;
use axum::extract::{ConnectInfo, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::serve::IncomingStream;
use nix::unistd::{Gid, Uid, User, getgrouplist};
use tokio::net::UnixListener;
use vswitch::api::{ErrorCode, Refusal};

use super::Failure;

/// The process at the other end of a connection, as the kernel says (`SO_PEERCRED`, unix(7)).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Peer {
    /// Its user and primary group; `None` where the kernel does not say.
    pub(crate) ids: Option<(u32, u32)>,
}

impl Connected<IncomingStream<'_, UnixListener>> for Peer {
    fn connect_info(stream: IncomingStream<'_, UnixListener>) -> Peer {
        Peer {
            ids: stream
                .io()
                .peer_cred()
                .ok()
                .map(|cred| (cred.uid(), cred.gid())),
        }
    }
}

/// Who may use the API.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Access {
    user: Uid,
    group: Gid,
}

impl Access {
    /// Root, the user of this process, and members of `group`.
    pub(crate) fn new(group: Gid) -> Access {
        Access {
            user: Uid::effective(),
            group,
        }
    }

    /// Whether a process of this user and primary group may. Asks the user database for further groups, and may block.
    fn allows(self, uid: Uid, gid: Gid) -> bool {
        uid.is_root() || uid == self.user || gid == self.group || is_member(uid, gid, self.group)
    }
}

fn is_member(uid: Uid, gid: Gid, group: Gid) -> bool {
    let Ok(Some(user)) = User::from_uid(uid) else {
        return false;
    };
    let Ok(name) = std::ffi::CString::new(user.name) else {
        return false;
    };
    getgrouplist(&name, gid).is_ok_and(|groups| groups.contains(&group))
}

/// Lets a request pass, or answers 403.
pub(super) async fn check(
    State(access): State<Access>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    request: Request,
    next: Next,
) -> Response {
    let allowed = match peer.ids {
        None => false,
        Some((uid, gid)) => {
            let ask = move || access.allows(Uid::from_raw(uid), Gid::from_raw(gid));
            tokio::task::spawn_blocking(ask).await.unwrap_or(false)
        }
    };
    if allowed {
        return next.run(request).await;
    }
    let who = peer.ids.map_or("an unknown user".to_owned(), |(uid, _)| {
        format!("user {uid}")
    });
    let (user, group) = (access.user, access.group);
    let message =
        format!("{who} may not use this API; allowed: root, user {user}, members of group {group}");
    Failure(Refusal::new(ErrorCode::Forbidden, message)).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_may() {
        let access = Access {
            user: Uid::from_raw(500),
            group: Gid::from_raw(60_001),
        };
        for (uid, gid, allowed) in [
            (0, 1, true),
            (500, 1, true),
            (60_002, 60_001, true),
            (60_002, 1, false),
            (60_001, 500, false),
        ] {
            assert_eq!(
                access.allows(Uid::from_raw(uid), Gid::from_raw(gid)),
                allowed,
                "{uid} {gid}"
            );
        }
        // User daemon is in group daemon by the user database, whatever group its process has.
        let daemon = User::from_name("daemon").unwrap().unwrap();
        assert!(is_member(daemon.uid, daemon.gid, daemon.gid));
        assert!(!is_member(daemon.uid, daemon.gid, Gid::from_raw(60_001)));
    }
}
