//! What the audit says of refused tokens.

use pflex_proto::ids::SdsId;

use super::Deed;
use crate::{
    command::proto,
    state::{
        State,
        model::{BadSource, BadTokens, Flaws, Severity},
    },
};

const KIND: &str = "token.refused";

impl State {
    /// One deed of all sources that are due for one; none: they were told of within the last minute.
    pub(super) fn bad_tokens_told(&self, note: &proto::NoteBadTokens) -> Option<Deed> {
        let by = self.sds_label(SdsId(note.sds_id));
        let deed = |row: &BadTokens, new: Flaws| {
            let what = match row.source {
                BadSource::OTHERS => format!("of more sources than are told apart, {}", words(new)),
                BadSource { address, .. } => format!("from {address}, {}", words(new)),
            };
            // A client that was away meets the end of its lease, and that is no attack.
            let severity = if new.accuse() { Severity::Warning } else { Severity::Info };
            Deed::new(KIND, self.bad_source_label(row.source), what).severe(severity)
        };
        let mut deeds: Vec<Deed> = self
            .bad_tokens
            .changes()
            .filter_map(|(_, before, now)| {
                let (now, told_at) = (now?, before.and_then(|before| before.told_at));
                let new = now.told.since(before.map_or(Flaws::default(), |before| before.told));
                (now.told_at != told_at).then(|| deed(now, new))
            })
            .collect();
        let deed = if deeds.len() > 1 { Deed::of_several(KIND, deeds) } else { deeds.pop()? };
        Some(deed.by(by))
    }

    fn bad_source_label(&self, source: BadSource) -> String {
        match self.sdc(source.sdc) {
            _ if source == BadSource::OTHERS => "clients".to_owned(),
            Some(sdc) => format!("sdc {}", sdc.name),
            None => format!("sdc #{}", source.sdc),
        }
    }
}

fn words(flaws: Flaws) -> String {
    let said = flaws.by_name().into_iter().filter(|(_, count)| *count > 0);
    let said: Vec<String> = said.map(|(name, count)| format!("{count} {name}")).collect();
    format!("refused for their tokens: {}", said.join(", "))
}
