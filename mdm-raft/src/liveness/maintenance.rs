//! Protected maintenances that are prepared: a server whose copies have all moved elsewhere enters it. Looked at from the state
//! alone, so a new leader just goes on; apply proves again that nothing has come back meanwhile.

use crate::{
    command::{Body, proto},
    state::{State, model::Sds},
};

/// Servers that may enter now.
pub(crate) fn commands(state: &State) -> Vec<Body> {
    if state.is_recovering() {
        return Vec::new();
    }
    let empty = state.all_sds().filter(|sds| sds.is_preparing() && state.copies_of(sds.id) == 0);
    let enter = |sds: &Sds| {
        Body::EnterMaintenance(proto::EnterMaintenance {
            name: sds.name.clone(),
            protected: true,
            prepared: true,
            used: Vec::new(),
        })
    };
    empty.map(enter).collect()
}
