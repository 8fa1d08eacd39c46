-- What people did in the shop, whoever's device it was: each event once, bots and unknown kinds of event left out.
-- grain: event_id
-- owner: data-platform
-- daily: events
WITH numbered AS (
    SELECT *, ROW_NUMBER() OVER (PARTITION BY event_id ORDER BY recv_ts, ts, device_id, uid, action, sku, keyword, price, qty, channel, user_agent) AS delivery
    FROM raw.events
),
delivered AS (
    SELECT *
    FROM numbered
    WHERE delivery = 1
      AND NOT REGEXP_LIKE(COALESCE(user_agent, ''), 'bot|spider|crawl', 'i')
),
counted AS (
    SELECT *, COUNT(*) OVER (PARTITION BY device_id) AS n_of_device
    FROM delivered
),
cleaned AS (
    SELECT
        event_id,
        ts,
        recv_ts,
        device_id,
        uid,
        CASE LOWER(TRIM(action))
            WHEN 'view' THEN 'view'
            WHEN 'search' THEN 'search'
            WHEN 'click' THEN 'click'
            WHEN 'add_cart' THEN 'cart'
            WHEN 'order' THEN 'purchase'
        END AS event_type,
        sku,
        NULLIF(LOWER(TRIM(keyword)), '') AS query,
        price,
        qty,
        CASE
            WHEN LOWER(TRIM(channel)) IN ('web', 'h5', 'pc') THEN 'web'
            WHEN LOWER(TRIM(channel)) IN ('app', 'ios', 'android') THEN 'app'
            WHEN LOWER(TRIM(channel)) IN ('mini-program', 'miniprogram', 'mini_program', '小程序') THEN 'mini-program'
        END AS platform
    FROM counted
    -- Nobody does a thousand things a day; who says so is a machine under a browser's name.
    WHERE n_of_device <= 1000
)
SELECT
    cleaned.event_id,
    COALESCE(cleaned.uid, identities.user_id) AS user_id,  -- who is signed in, else the device's owner; NULL = nobody knows
    cleaned.device_id,
    cleaned.ts AS occurred_at,
    cleaned.recv_ts AS arrived_at,                          -- of the first delivery
    cleaned.event_type,                                     -- view, search, click, cart, purchase
    items.item_id,                                          -- NULL = none, or not in the shop
    items.category_id,                                      -- the item's
    cleaned.query,                                          -- lower case; of a view or click: the search that led to it
    CAST(CASE WHEN cleaned.price > 0 AND cleaned.price < 1000000 THEN cleaned.price END AS DECIMAL(18, 6)) AS price,  -- CNY
    CASE WHEN cleaned.qty > 0 THEN cleaned.qty END AS quantity,  -- count; NULL = not a cart or purchase
    cleaned.platform                                        -- web, app, mini-program; NULL = not said
FROM cleaned
-- A link counts from when it was made: yesterday's features must not know of today's sign-in.
LEFT JOIN identities ON identities.device_id = cleaned.device_id AND identities.linked_at <= cleaned.ts
LEFT JOIN items ON items.item_id = cleaned.sku
WHERE cleaned.event_type IS NOT NULL
