//! Three users of whom everything is known, added to a generated shop for tests: what they did is raw log rows like all others.
//!
//! A viewed and clicked items 1 to 3 of 鞋子 and searched 鞋子 and 服装; B searched 鞋子 and 鞋子配件; C searched 手机配件.

use super::logs::{EVENTS, path};
use super::snapshots::{CONSENTS, IDENTITIES, USERS};
use super::words::{CATEGORIES, SHOES};
use super::world::{DAY, HOUR, ITEMS_PER_CATEGORY, SECOND, World, midnight};
use super::write::{Cell, Table};
use super::{put, read_plan};
use crate::error::{Error, Kind, Result};
use crate::platform::storage::Store;
use chrono::{Days, NaiveDate};
use std::collections::BTreeSet;

/// Raw user ids of the three, in the order A, B, C.
pub const ARTICLE_USERS: [&str; 3] = ["A", "B", "C"];

struct Done {
    action: &'static str,
    item: Option<usize>,
    keyword: Option<&'static str>,
}

/// Adds `part-planted.parquet` to the day folders of events (the history's last day but one), users, consents and identities (every day).
/// With `swap`, A did what C did and C what A did.
pub async fn plant_article_users(store: &Store, swap: bool) -> Result<()> {
    let missing = || Error::new(Kind::InputMissing, format_args!("{} holds no generated shop", store.locate("")));
    let plan = read_plan(store).await?.ok_or_else(missing)?;
    let world = World::draw(&plan);
    let [a, b, c] = did();
    let did = if swap { [c, b, a] } else { [a, b, c] };
    let date = plan.until - Days::new(1);
    let mut events = Table::new(EVENTS)?;
    for (k, (uid, did)) in ARTICLE_USERS.into_iter().zip(&did).enumerate() {
        for (n, done) in did.iter().enumerate() {
            let at = midnight(date) + 20 * HOUR + n as i64 * 40 * SECOND;
            let item = done.item.map(|item| &world.items[item]);
            events.push(&[
                (&format!("e_article_{k}_{n}")).into(),
                Cell::Time(at),
                Cell::Time(at + 2 * SECOND),
                (&device(k)).into(),
                uid.into(),
                done.action.into(),
                item.map(|item| item.sku.as_str()).into(),
                done.keyword.into(),
                item.map(|item| item.price).into(),
                Cell::Null,
                "app".into(),
                "ShopApp/8.2 (Android 14)".into(),
            ])?;
        }
    }
    let planted = |table: &str, date| path(table, date).replace("part-0", "part-planted");
    let mut files = vec![events.finish(planted("events", date))?];
    let registered = midnight(plan.start()) - 300 * DAY;
    for date in record_days(store).await? {
        let (mut users, mut consents, mut identities) = (Table::new(USERS)?, Table::new(CONSENTS)?, Table::new(IDENTITIES)?);
        for (k, uid) in ARTICLE_USERS.into_iter().enumerate() {
            users.push(&[uid.into(), "上海".into(), Cell::Time(registered)])?;
            consents.push(&[uid.into(), "Y".into(), "Y".into(), "Y".into(), Cell::Time(registered)])?;
            identities.push(&[(&device(k)).into(), uid.into(), Cell::Time(registered)])?;
        }
        files.push(users.finish(planted("users", date))?);
        files.push(consents.finish(planted("consents", date))?);
        files.push(identities.finish(planted("identities", date))?);
    }
    put(store, files).await.map(drop)
}

fn device(k: usize) -> String {
    format!("d_article_{k}")
}

/// What A, B and C did.
fn did() -> [Vec<Done>; 3] {
    let searched = |category: usize| Done { action: "search", item: None, keyword: Some(CATEGORIES[category].zh) };
    let named = |name: &str| CATEGORIES.iter().position(|category| category.zh == name).expect("a name of the taxonomy");
    let items = (0..3).map(|rank| SHOES * ITEMS_PER_CATEGORY + rank);
    let touched = items.flat_map(|item| ["view", "click"].map(|action| Done { action, item: Some(item), keyword: None }));
    let a = touched.chain([searched(SHOES), searched(named("服装"))]).collect();
    let b = vec![searched(SHOES), searched(named("鞋子配件"))];
    let c = vec![searched(named("手机配件"))];
    [a, b, c]
}

/// The days for which the shop has records.
async fn record_days(store: &Store) -> Result<BTreeSet<NaiveDate>> {
    let objects = store.list("users").await?;
    let day = |path: &str| path.split('/').find_map(|part| part.replace("%3D", "=").strip_prefix("dt=")?.parse().ok());
    Ok(objects.iter().filter_map(|object| day(&object.path)).collect())
}
