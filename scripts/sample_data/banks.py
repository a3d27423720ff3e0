"""Word banks shared by the frames: `{name_of_bank}` in a frame draws one entry, never twice the same in a sentence."""

BANKS = {
    "man": "Daniel|Omar|Peter|Luis|Hiro|Marcus|Viktor|Samuel|Anton|Rajiv|Tom|Felix|Kofi|Henry|Mateo|Ivan|Paul|Noah|"
    "Ahmed|George|Stefan|Leo|Martin|Karim",
    "woman": "Anna|Maria|Ingrid|Leila|Sofia|Mei|Clara|Priya|Hannah|Elena|Ruth|Amara|Julia|Nadia|Grace|Yuki|Carmen|"
    "Olivia|Fatima|Irene|Helen|Marta|Zoe|Lucy",
    "surname": "Keller|Okafor|Lindqvist|Marsh|Tanaka|Moreau|Petrov|Alvarez|Novak|Sharma|Whitfield|Brandt|Costa|Doyle|"
    "Haddad|Jensen|Kowalski|Lambert|Rossi|Yilmaz",
    "city": "Lisbon|Oslo|Nairobi|Toronto|Prague|Lima|Osaka|Dublin|Hamburg|Seattle|Naples|Cairo|Melbourne|Warsaw|Boston|"
    "Mumbai|Geneva|Bogota|Helsinki|Athens|Chicago|Seville|Hanoi|Cape Town",
    "country": "Portugal|Norway|Kenya|Canada|Japan|Peru|Ireland|Poland|Brazil|India|Morocco|Greece|Vietnam|Chile|"
    "Finland|Ghana|Mexico|New Zealand|Turkey|Iceland",
    "day": "Monday|Tuesday|Wednesday|Thursday|Friday|Saturday|Sunday",
    "month": "January|February|March|April|May|June|July|August|September|October|November|December",
    "season": "spring|summer|autumn|winter",
    "few": "two|three|four|five|six",
    "many": "twelve|fifteen|twenty|thirty|forty|sixty|eighty",
    "hundreds": "120|180|240|300|350|420|560|640|780|900",
    "thousands": "2,400|3,000|5,500|8,000|12,000|15,000|26,000|40,000",
    "pct": "4|6|7|9|11|13|16|18|22|27|34|41",
    "clock": "six|seven|eight|nine|ten|eleven|noon|half past four|a quarter to five",
    "year": "1962|1968|1974|1981|1986|1991|1996|1999|2003|2007|2011|2013|2016|2018",
    "old_year": "1215|1347|1402|1492|1531|1588|1624|1666|1703|1755|1789|1812|1839",
    "kin": "my sister|my brother|my cousin|my aunt|my uncle|my mother|my father|my grandmother|my neighbour|a friend",
    "Kin": "My sister|My brother|My cousin|My aunt|My uncle|My mother|My father|My grandmother|"
    "My neighbour|My flatmate",
}
