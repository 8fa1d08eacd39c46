//! What the generated shop sells: a taxonomy of two to three levels with the words people use for it, in Chinese and English.

/// One category. Its position in [`CATEGORIES`] is how the rest of the generator names it.
pub struct Category {
    pub id: &'static str,
    /// Position of the parent, which stands earlier.
    pub parent: Option<usize>,
    pub zh: &'static str,
    pub en: &'static str,
    /// Health, sexuality, politics, religion: nobody may be labelled by it.
    pub sensitive: bool,
    /// Middle price of an item, CNY.
    pub price: f64,
    /// Relative share of users who care for it.
    pub popularity: f64,
    pub zh_words: &'static [&'static str],
    pub en_words: &'static [&'static str],
}

macro_rules! categories {
    ($($id:literal $parent:expr, $zh:literal $en:literal $sensitive:literal $price:literal $popularity:literal [$($zhw:literal)*] [$($enw:literal)*];)*) => {
        &[$(Category { id: $id, parent: $parent, zh: $zh, en: $en, sensitive: $sensitive, price: $price, popularity: $popularity,
            zh_words: &[$($zhw),*], en_words: &[$($enw),*] }),*]
    };
}

/// Position of 鞋子; items 1 to 3 of it are the article's.
pub const SHOES: usize = 1;

pub const CATEGORIES: &[Category] = categories! {
    "c01" None,     "服装"     "clothing"           false  220.0 1.4 ["连衣裙" "外套" "T恤"]        ["dress" "jacket" "t-shirt"];
    "c02" None,     "鞋子"     "shoes"              false  330.0 1.5 ["运动鞋" "跑鞋" "皮鞋"]       ["sneakers" "running shoes" "boots"];
    "c03" Some(1),  "鞋子配件" "shoe accessories"   false   45.0 1.3 ["鞋带" "鞋垫" "鞋油"]         ["shoelaces" "insoles" "shoe polish"];
    "c04" None,     "手机"     "phones"             false 2900.0 1.4 ["智能手机" "折叠手机"]        ["smartphone" "5g phone"];
    "c05" Some(3),  "手机配件" "phone accessories"  false   60.0 1.3 ["手机壳" "充电器" "数据线"]   ["phone case" "charger" "usb cable"];
    "c06" Some(0),  "男装"     "menswear"           false  240.0 0.8 ["衬衫" "西装"]                ["shirt" "suit"];
    "c07" Some(0),  "女装"     "womenswear"         false  260.0 1.0 ["半身裙" "毛衣"]              ["skirt" "sweater"];
    "c08" None,     "箱包"     "bags"               false  310.0 0.8 ["背包" "行李箱"]              ["backpack" "suitcase"];
    "c09" None,     "电脑"     "computers"          false 4200.0 1.0 ["笔记本电脑" "平板"]          ["laptop" "tablet"];
    "c10" Some(8),  "电脑配件" "computer parts"     false  180.0 0.9 ["键盘" "鼠标" "显示器"]       ["keyboard" "mouse" "monitor"];
    "c11" None,     "家电"     "home appliances"    false 1500.0 0.9 ["冰箱" "洗衣机"]              ["fridge" "washing machine"];
    "c12" Some(10), "厨房电器" "kitchen appliances" false  350.0 0.8 ["电饭煲" "空气炸锅"]          ["rice cooker" "air fryer"];
    "c13" None,     "家具"     "furniture"          false  900.0 0.7 ["沙发" "书桌"]                ["sofa" "desk"];
    "c14" Some(12), "床上用品" "bedding"            false  280.0 0.7 ["被子" "枕头"]                ["duvet" "pillow"];
    "c15" None,     "美妆"     "beauty"             false  160.0 1.1 ["口红" "粉底"]                ["lipstick" "foundation"];
    "c16" Some(14), "护肤"     "skincare"           false  210.0 1.0 ["面霜" "面膜"]                ["face cream" "face mask"];
    "c17" None,     "食品"     "food"               false   70.0 1.0 ["大米" "牛奶"]                ["rice" "milk"];
    "c18" Some(16), "零食"     "snacks"             false   35.0 1.0 ["坚果" "薯片"]                ["nuts" "crisps"];
    "c19" Some(16), "茶叶"     "tea"                false  120.0 0.6 ["绿茶" "普洱"]                ["green tea" "pu'er"];
    "c20" None,     "母婴"     "mother and baby"    false  190.0 0.7 ["奶粉" "纸尿裤"]              ["baby formula" "nappies"];
    "c21" Some(19), "玩具"     "toys"               false   95.0 0.7 ["积木" "毛绒玩具"]            ["building bricks" "plush toy"];
    "c22" None,     "运动户外" "sports"             false  270.0 0.8 ["帐篷" "登山杖"]              ["tent" "trekking poles"];
    "c23" Some(21), "健身器材" "fitness gear"       false  400.0 0.6 ["哑铃" "跑步机"]              ["dumbbell" "treadmill"];
    "c24" Some(22), "瑜伽"     "yoga"               false  110.0 0.5 ["瑜伽垫" "瑜伽服"]            ["yoga mat" "yoga pants"];
    "c25" None,     "图书"     "books"              false   55.0 0.8 ["词典" "绘本"]                ["dictionary" "picture book"];
    "c26" Some(24), "小说"     "fiction"            false   48.0 0.7 ["科幻小说" "悬疑小说"]        ["science fiction" "thriller"];
    "c27" Some(24), "政治宗教" "politics and faith" true    60.0 0.3 ["宗教经典" "时政"]            ["scripture" "political essays"];
    "c28" None,     "宠物用品" "pet supplies"       false   90.0 0.7 ["猫粮" "狗粮"]                ["cat food" "dog food"];
    "c29" None,     "汽车用品" "car accessories"    false  150.0 0.6 ["行车记录仪" "车载支架"]      ["dash cam" "phone mount"];
    "c30" None,     "健康"     "health"             true   130.0 0.5 ["血压计" "维生素"]            ["blood pressure monitor" "vitamins"];
    "c31" None,     "成人用品" "adult products"     true   110.0 0.3 ["情趣用品" "避孕套"]          ["adult toys" "condoms"];
};

pub const REGIONS: [&str; 10] = ["北京", "上海", "广东", "浙江", "江苏", "四川", "湖北", "山东", "河南", "陕西"];

/// What titles put before the word.
pub const ADJECTIVES: [(&str, &str); 8] = [
    ("新款", "new"),
    ("轻便", "light"),
    ("经典", "classic"),
    ("限量", "limited"),
    ("高级", "premium"),
    ("实用", "handy"),
    ("复古", "retro"),
    ("特价", "special offer"),
];

/// The category and those above it up to the root, which comes last.
pub fn path(category: usize) -> impl Iterator<Item = usize> {
    std::iter::successors(Some(category), |&of| CATEGORIES[of].parent)
}

pub fn root(category: usize) -> usize {
    path(category).last().expect("a path holds its start")
}
