//! Settings, and the leader's note that it held back a verdict (S23).

use super::{Context, Effect, done, validate};
use crate::{
    command::proto,
    state::{
        State,
        model::{EvictionHold, Setting},
        rows::cluster::ConfigRow,
    },
};

impl State {
    /// All or none: a list with a bad entry changes nothing.
    pub(super) fn change_settings(&mut self, change: &proto::ChangeSettings) -> Effect {
        let mut settings = self.settings();
        for entry in &change.entries {
            let object = format!("setting {}", entry.key.chars().take(60).collect::<String>());
            let Some(setting) = Setting::of(&entry.key) else {
                let known = Setting::ALL.iter().map(|setting| setting.key()).collect::<Vec<_>>().join(", ");
                return Err(validate::invalid(object, format!("there is none of this name; there are {known}")));
            };
            let (least, most) = setting.bounds();
            let value = if entry.to_default { setting.default() } else { entry.value };
            if !(least..=most).contains(&value) {
                return Err(validate::invalid(object, format!("{value} is not from {least} to {most}")));
            }
            settings.set(setting, value);
        }
        if settings.get(Setting::HealthDown) <= settings.get(Setting::HealthStale) {
            let what = "health.down_ms must be more than health.stale_ms: a component is STALE before it is DOWN";
            return Err(validate::invalid("setting health.down_ms", what));
        }
        self.config.put(ConfigRow::Settings(settings));
        done(0_u64)
    }

    /// A leader that hears too few SDSs says so before it hands over; its successor may act on the same finding.
    pub(super) fn hold_evictions(&mut self, context: Context, hold: &proto::HoldEvictions) -> Effect {
        validate::text("evictions", "reason", &hold.why)?;
        self.config.put(ConfigRow::EvictionHold(EvictionHold { by: hold.node_id, at: context.log_time }));
        done(hold.node_id)
    }
}
